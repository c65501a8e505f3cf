"""Loggers, which receive the lines of metrics.jsonl in addition: CSV, TensorBoard, Weights & Biases, MLflow."""
