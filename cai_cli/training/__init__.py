"""What the training stages share: pure maths (`losses`, `advantages`), checkpoints, the pairwise loop."""
