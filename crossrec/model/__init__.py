"""The recommender: text backbone, sequence encoder, objectives. Torch only, no Ray."""
