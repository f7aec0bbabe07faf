"""Classes of images of any kind: a lab's own table, an image and a label in each row."""

from pipeline.tasks.classes import Classes

TASK = Classes()
