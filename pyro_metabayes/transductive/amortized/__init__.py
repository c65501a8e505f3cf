"""An amortized transductive classifier: steps on the queries of a task whose update rules are learned networks."""
