"""Muon and AdamW: the update of the weights, also divided between ranks."""
