"""Chats: messages as rows have them, the template that renders them, and which tokens to train."""
