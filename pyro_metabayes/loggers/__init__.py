"""Loggers for the lines of metrics.jsonl: CSV, TensorBoard, Weights & Biases, MLflow."""
