"""From the trained weights of one network to weights of another size: operators that several methods share."""
