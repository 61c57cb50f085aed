"""CLIP with differential attention: models, training, evaluation, analysis. Importing this does not import torch."""
