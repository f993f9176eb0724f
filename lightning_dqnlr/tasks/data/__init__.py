"""The examples that tasks train on."""
