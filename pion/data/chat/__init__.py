"""Conversations: from messages to ids and the mask of what is learned.

`chat_format` chooses how: `conversation` in Pion's own form, or `template` with a model's own chat
template, where `template_renderer` renders and `template_mask` finds what is learned.
"""
