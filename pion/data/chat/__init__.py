"""Conversations: from messages to ids and the mask of what is learned."""
