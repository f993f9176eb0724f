"""At the wheel of a run: what sets the learning rate in a Trainer or in a plain torch loop."""
