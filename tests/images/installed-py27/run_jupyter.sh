#!/usr/bin/env bash
# Stands for the script of that name in old TensorFlow images.
exec jupyter notebook --ip=0.0.0.0 "$@"
