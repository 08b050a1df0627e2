"""Experiments: train, evaluate, simulate, tune; one module for each command."""

import logging

# Without a writable home matplotlib uses a temporary folder, which works as well; its long advice on that is no news.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
