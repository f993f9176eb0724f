"""What the training shows, turned into a learning rate (torch only)."""
