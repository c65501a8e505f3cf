"""An amortized transductive classifier: networks update the class means by the queries of a task."""
