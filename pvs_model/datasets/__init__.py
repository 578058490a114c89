"""Cases with labels, prepared as inference prepares them."""
