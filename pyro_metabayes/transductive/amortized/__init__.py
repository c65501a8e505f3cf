"""An amortized transductive classifier, with learned rules that update class means from the queries of a task."""
