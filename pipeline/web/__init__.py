"""What the web servers of `pion` share: who may ask, where they listen, and their pages."""
