"""Do labels look like those that a trained model would draw?"""
