"""Loggers to which the lines of metrics.jsonl are also sent: CSV, TensorBoard, Weights & Biases, MLflow."""
