"""Parts of models and priors: encoders of sets, predictors with generated weights."""
