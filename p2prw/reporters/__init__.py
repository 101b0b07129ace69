"""How progress and results are shown: live on a terminal, plain lines elsewhere, JSON for machines."""
