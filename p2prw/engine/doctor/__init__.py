"""`p2prw doctor`: small checks of one host, each of which says what it found, why, and what to type."""
