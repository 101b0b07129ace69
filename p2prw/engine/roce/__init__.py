"""RoCEv2 reliable connected transport without I/O: bursts and time go in, bursts and completions come out."""
