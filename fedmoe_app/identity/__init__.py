"""Who a node is: which client's number it may speak for."""
