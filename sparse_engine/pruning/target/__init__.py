"""Pruning to a budget: time, bytes, parameters or multiply-adds of the whole model.

Each layer has a table of levels (granularity x sparsity) with their errors and costs; `solve` picks
one level a layer, and `search` improves the choice by the error of the model's outputs.
"""
