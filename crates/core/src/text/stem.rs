//! English plurals. The stemmer is light on purpose, because a wrong stem hides products: full stemming lowers nDCG,
//! see `docs/benchmarks.md`.

/// Ends of plurals that no rule covers, each with the end of the singular. The last word of a compound decides
/// ("bookshelves", "sweetpotatoes").
const IRREGULAR_ENDS: &[(&str, &str)] = &[
    ("shelves", "shelf"),
    ("scarves", "scarf"),
    ("knives", "knife"),
    ("housewives", "housewife"),
    ("wolves", "wolf"),
    ("halves", "half"),
    ("calves", "calf"),
    ("loaves", "loaf"),
    ("hooves", "hoof"),
    ("thieves", "thief"),
    ("wharves", "wharf"),
    ("potatoes", "potato"),
    ("tomatoes", "tomato"),
    ("mosquitoes", "mosquito"),
    ("mangoes", "mango"),
    ("dominoes", "domino"),
    ("volcanoes", "volcano"),
    ("tornadoes", "tornado"),
    ("torpedoes", "torpedo"),
    ("flamingoes", "flamingo"),
    ("avocadoes", "avocado"),
    ("buffaloes", "buffalo"),
    ("tuxedoes", "tuxedo"),
    ("heroes", "hero"),
    ("lenses", "lens"),
    ("canvases", "canvas"),
    ("viruses", "virus"),
    ("cactuses", "cactus"),
    ("crocuses", "crocus"),
    ("walruses", "walrus"),
    ("irises", "iris"),
    ("atlases", "atlas"),
    ("women", "woman"),
    ("children", "child"),
    ("headaches", "headache"),
];

/// Plurals that are no compounds' ends, because other words end with them too.
const IRREGULAR: &[(&str, &str)] = &[
    ("leaves", "leaf"),
    ("tealeaves", "tealeaf"),
    ("wives", "wife"),
    ("lives", "life"),
    ("elves", "elf"),
    ("dwarves", "dwarf"),
    ("men", "man"),
    ("teeth", "tooth"),
    ("geese", "goose"),
    ("mice", "mouse"),
    ("buses", "bus"),
    ("gases", "gas"),
    ("cacti", "cactus"),
    ("axes", "axe"),
    ("echoes", "echo"),
    ("zeroes", "zero"),
    ("cargoes", "cargo"),
    ("haloes", "halo"),
];

/// Singulars that end with "s".
const SINGULAR: &[&str] = &["lens", "canvas", "atlas", "christmas", "chaos", "cosmos", "thermos", "rhinoceros"];

/// Returns the singular of an English word, as far as it is regular or in the tables; other words unchanged.
pub(super) fn stem(word: &str) -> String {
    if word.len() < 3 || !word.bytes().all(|b| b.is_ascii_lowercase()) {
        return word.to_owned();
    }
    if let Some(singular) = irregular(word) {
        return singular;
    }
    let regular = regular(word);
    // "womens" of "women's".
    irregular(&regular).unwrap_or(regular)
}

fn irregular(word: &str) -> Option<String> {
    if let Some((_, singular)) = IRREGULAR.iter().find(|(plural, _)| *plural == word) {
        return Some((*singular).to_owned());
    }
    IRREGULAR_ENDS.iter().find_map(|(plural, singular)| Some([word.strip_suffix(plural)?, singular].concat()))
}

/// Removes a regular plural ending.
fn regular(word: &str) -> String {
    let length = word.len();
    if length <= 3 || SINGULAR.contains(&word) {
        return word.to_owned();
    }
    if length > 4
        && let Some(base) = word.strip_suffix("ies").or_else(|| word.strip_suffix("ie"))
    {
        return format!("{base}y");
    }
    for ending in ["sses", "shes", "ches", "xes", "zzes"] {
        if word.ends_with(ending) {
            return word[..length - 2].to_owned();
        }
    }
    if ["ss", "us", "is"].iter().any(|ending| word.ends_with(ending)) {
        return word.to_owned();
    }
    word.strip_suffix('s').unwrap_or(word).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn singular_and_plural_have_the_same_stem() {
        for (plural, singular) in [
            ("mugs", "mug"),
            ("boxes", "box"),
            ("glasses", "glass"),
            ("berries", "berry"),
            ("shoes", "shoe"),
            ("cookies", "cookie"),
            ("watches", "watch"),
            ("scarves", "scarf"),
            ("bookshelves", "bookshelf"),
            ("knives", "knife"),
            ("gloves", "glove"),
            ("sleeves", "sleeve"),
            ("potatoes", "potato"),
            ("potatos", "potato"),
            ("toes", "toe"),
            ("lenses", "lens"),
            ("canvases", "canvas"),
            ("women", "woman"),
            ("womens", "woman"),
            ("mens", "man"),
            ("mice", "mouse"),
        ] {
            assert_eq!(stem(plural), stem(singular), "{plural}");
        }
    }

    #[test]
    fn singulars_and_other_words_stay() {
        for word in ["bus", "gas", "dress", "lens", "canvas", "iris", "cactus", "specimen", "wifi", "x", "größe"] {
            assert_eq!(stem(word), word);
        }
    }
}
