"""What the policy is trained on: modules, data and task families."""
