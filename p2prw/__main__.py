"""`python -m p2prw`."""

from __future__ import annotations

from p2prw.entry import main

if __name__ == "__main__":
    main()
