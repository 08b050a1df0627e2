"""How much better a router could decide with the same information: roll-outs of sampled futures."""
