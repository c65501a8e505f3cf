"""Parts of models: products of weights and features, set encoders."""
