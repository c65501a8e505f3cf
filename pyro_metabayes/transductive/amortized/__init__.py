"""An amortized transductive classifier: it updates class means from the queries of a task by learned update rules."""
