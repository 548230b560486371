"""What the parameters of a model are for, read from its layers and its data flow: the ground that formulae stand on."""
