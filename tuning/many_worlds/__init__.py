"""How a router does in many worlds that training never drew."""
