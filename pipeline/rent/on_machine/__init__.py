"""What a rented machine runs before the job: is this machine good enough?"""
