"""The subjects of MMLU and of C-Eval, each a subset on the hub, and the categories their authors sort them into."""

from __future__ import annotations

from collections.abc import Mapping

MMLU: dict[str, str] = {
    "STEM": (
        "abstract_algebra astronomy college_biology college_chemistry college_computer_science college_mathematics "
        "college_physics computer_security conceptual_physics electrical_engineering elementary_mathematics "
        "high_school_biology high_school_chemistry high_school_computer_science high_school_mathematics "
        "high_school_physics high_school_statistics machine_learning"
    ),
    "humanities": (
        "formal_logic high_school_european_history high_school_us_history high_school_world_history international_law "
        "jurisprudence logical_fallacies moral_disputes moral_scenarios philosophy prehistory professional_law "
        "world_religions"
    ),
    "social sciences": (
        "econometrics high_school_geography high_school_government_and_politics high_school_macroeconomics "
        "high_school_microeconomics high_school_psychology human_sexuality professional_psychology public_relations "
        "security_studies sociology us_foreign_policy"
    ),
    "other": (
        "anatomy business_ethics clinical_knowledge college_medicine global_facts human_aging management marketing "
        "medical_genetics miscellaneous nutrition professional_accounting professional_medicine virology"
    ),
}

CEVAL: dict[str, str] = {
    "STEM": (
        "advanced_mathematics college_chemistry college_physics college_programming computer_architecture "
        "computer_network discrete_mathematics electrical_engineer high_school_biology high_school_chemistry "
        "high_school_mathematics high_school_physics metrology_engineer middle_school_biology middle_school_chemistry "
        "middle_school_mathematics middle_school_physics operating_system probability_and_statistics "
        "veterinary_medicine"
    ),
    "humanities": (
        "art_studies chinese_language_and_literature high_school_chinese high_school_history "
        "ideological_and_moral_cultivation law legal_professional logic middle_school_history modern_chinese_history "
        "professional_tour_guide"
    ),
    "social sciences": (
        "business_administration college_economics education_science high_school_geography high_school_politics "
        "mao_zedong_thought marxism middle_school_geography middle_school_politics teacher_qualification"
    ),
    "other": (
        "accountant basic_medicine civil_servant clinical_medicine environmental_impact_assessment_engineer "
        "fire_engineer physician plant_protection sports_science tax_accountant urban_and_rural_planner"
    ),
}


def categories(subjects: Mapping[str, str]) -> dict[str, str]:
    """Subject -> category, subjects in alphabetical order."""
    return dict(sorted((subject, category) for category, names in subjects.items() for subject in names.split()))
