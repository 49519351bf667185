"""Distillation: the original model teaches the reduced one."""
