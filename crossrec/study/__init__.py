"""What each part of the model is worth: the same training again, with one thing changed."""
