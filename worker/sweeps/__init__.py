"""Grids of trainings: their points, the width search, what they show, and the picture and page that show it."""
