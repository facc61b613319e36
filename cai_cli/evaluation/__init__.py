"""How good models and labels are: calibration, agreement, refusals, and the plots of them."""
