"""Turns a composed config into typed settings: schemas, checks, messages, security."""
