"""Modes"""
