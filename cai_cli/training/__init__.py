"""What the training stages share: pure maths (`losses`, `advantages`, `calibration`), checkpoints, the pairwise loop."""
