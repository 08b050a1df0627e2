"""Run directories: atomic files, lock, remote copy, signatures, digests, resume. Knows no Ray."""
