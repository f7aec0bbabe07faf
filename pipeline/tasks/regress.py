"""Numbers from images of any kind: a lab's own table, an image and one or more numeric targets in each row."""

from pipeline.tasks.numbers import Numbers

TASK = Numbers()
