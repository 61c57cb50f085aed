"""How sure a number is: bootstrap over test examples, Student's t over seeds."""
