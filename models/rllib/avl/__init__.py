"""AVL: its configuration, learner, module and price search."""
