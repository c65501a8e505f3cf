"""Few-shot classifiers on banks of embeddings that no shipped learner has seen: `python -m benchmarks.few_shot`.

Each method is a row of the table. It maps tasks without query labels to log probabilities:

    def row(observed: Observed) -> Tensor:      # log p(y = c | x) [T, Q, C], normalised, in nats
        ...

All rows get the same tasks. Each row is compared task by task with class means, whose temperature is fitted. There are
three ways to add a row:

    --function MODULE:NAME                       any such function
    --learner FILE[,guide.SETTING=VALUE,...]     a checkpoint of MetaLearner.save, with settings of its guide changed
    --classifier [ARGUMENT=VALUE,...]            FewShotClassifier(ARGUMENT=VALUE, ...), one task at a time

A learner is rebuilt for each dimension and number of classes. The shapes of its weights must not depend on these.
"""
