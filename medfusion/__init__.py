"""MedFusion: hospitals train multimodal diagnostic models together without sharing patients."""
