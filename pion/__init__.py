"""The Pion model library: decoder, data order, training, generation, export."""
