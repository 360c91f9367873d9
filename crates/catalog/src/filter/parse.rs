//! The recursive-descent parser of the filter language.
use super::{
    Distance, FILTER_CHARS_MAX, FILTER_DEPTH_MAX, Field, FilterError, Literal, Node, Operator, Predicate, ValueType,
    attribute_name,
    build::{DISTANCE, FilterValue, node, wrong_type},
    write_text,
};
use std::{fmt, iter::Peekable, vec::IntoIter};

pub(super) const FIELDS: &str = "item_id, group_id, title, description, category, category_path, brand, price, original_price, \
                      discount, margin, currency, rating, rating_count, stock_quantity, in_stock, availability, tags, \
                      create_time, attributes.NAME, distance(attributes.NAME, LATITUDE, LONGITUDE)";

/// Parses a filter of at most [`FILTER_CHARS_MAX`] characters.
pub(super) fn parse(text: &str) -> Result<Node, FilterError> {
    let length = text.chars().count();
    if length > FILTER_CHARS_MAX {
        return error(FILTER_CHARS_MAX, format!("the filter has {length} characters; the limit is {FILTER_CHARS_MAX}"));
    }
    let mut parser = Parser { tokens: tokens(text)?.into_iter().peekable(), end: length };
    let node = parser.or(0)?;
    match parser.tokens.next() {
        None => Ok(node),
        Some((position, token)) => error(position, format!("expected AND, OR or the end, found {token}")),
    }
}

fn error<T>(position: usize, message: impl Into<String>) -> Result<T, FilterError> {
    Err(FilterError { position, message: message.into(), unknown_field: None })
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// A field, `true` or `false`.
    Name(String),
    Text(String),
    Number(f64),
    Operator(Operator),
    Open,
    Close,
    Comma,
    And,
    Or,
    Not,
    In,
    Has,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Text(text) => write_text(f, text),
            Self::Number(number) => write!(f, "{number}"),
            Self::Operator(operator) => f.write_str(operator.sign()),
            Self::Open => f.write_str("("),
            Self::Close => f.write_str(")"),
            Self::Comma => f.write_str(","),
            Self::And => f.write_str("AND"),
            Self::Or => f.write_str("OR"),
            Self::Not => f.write_str("NOT"),
            Self::In => f.write_str("IN"),
            Self::Has => f.write_str("HAS"),
        }
    }
}

fn tokens(text: &str) -> Result<Vec<(usize, Token)>, FilterError> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&c) = chars.get(at) {
        let start = at;
        let token = match c {
            _ if c.is_whitespace() => {
                at += 1;
                continue;
            }
            '(' => Token::Open,
            ')' => Token::Close,
            ',' => Token::Comma,
            '=' | '!' | '<' | '>' => operator(&chars, &mut at)?,
            '"' => Token::Text(quoted(&chars, &mut at)?),
            '-' | '0'..='9' => number(&chars, &mut at)?,
            _ if c.is_alphabetic() || c == '_' => name(&chars, &mut at),
            _ => return error(start, format!("unexpected {c:?}; put texts in double quotes")),
        };
        if at == start {
            at += 1;
        }
        tokens.push((start, token));
    }
    Ok(tokens)
}

fn operator(chars: &[char], at: &mut usize) -> Result<Token, FilterError> {
    let start = *at;
    let followed = chars.get(start + 1) == Some(&'=');
    *at += if followed { 2 } else { 1 };
    let operator = match (chars[start], followed) {
        ('=', false) => Operator::Equal,
        ('!', true) => Operator::Unequal,
        ('<', true) => Operator::LessOrEqual,
        ('<', false) => Operator::Less,
        ('>', true) => Operator::GreaterOrEqual,
        ('>', false) => Operator::Greater,
        _ => return error(start, "expected one of =, !=, <, <=, >, >="),
    };
    Ok(Token::Operator(operator))
}

fn quoted(chars: &[char], at: &mut usize) -> Result<String, FilterError> {
    let start = *at;
    let mut text = String::new();
    *at += 1;
    while let Some(&c) = chars.get(*at) {
        *at += 1;
        match c {
            '"' => return Ok(text),
            '\\' => match chars.get(*at) {
                Some(&c @ ('"' | '\\')) => {
                    text.push(c);
                    *at += 1;
                }
                _ => return error(*at - 1, r#"only " and \ can be escaped by \"#),
            },
            _ => text.push(c),
        }
    }
    error(start, "the text has no closing quote")
}

fn number(chars: &[char], at: &mut usize) -> Result<Token, FilterError> {
    let start = *at;
    *at += 1;
    while chars.get(*at).is_some_and(|c| c.is_alphanumeric() || *c == '.') {
        *at += 1;
    }
    let written: String = chars[start..*at].iter().collect();
    let plain = written.trim_start_matches('-').chars().all(|c| c.is_ascii_digit() || c == '.');
    match written.parse::<f64>() {
        Ok(number) if plain && number.is_finite() => Ok(Token::Number(number)),
        _ => error(start, format!("{written} is not a number")),
    }
}

fn name(chars: &[char], at: &mut usize) -> Token {
    let start = *at;
    while chars.get(*at).is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '.')) {
        *at += 1;
    }
    let name: String = chars[start..*at].iter().collect();
    match name.as_str() {
        "AND" | "and" => Token::And,
        "OR" | "or" => Token::Or,
        "NOT" | "not" => Token::Not,
        "IN" | "in" => Token::In,
        "HAS" | "has" => Token::Has,
        _ => Token::Name(name),
    }
}

struct Parser {
    tokens: Peekable<IntoIter<(usize, Token)>>,
    /// The number of characters of the filter.
    end: usize,
}

impl Parser {
    /// Parses `a OR b OR ...`. AND binds tighter.
    fn or(&mut self, depth: usize) -> Result<Node, FilterError> {
        self.chain(depth, &Token::Or, Self::and, Node::Or)
    }

    fn and(&mut self, depth: usize) -> Result<Node, FilterError> {
        self.chain(depth, &Token::And, Self::operand, Node::And)
    }

    fn chain(
        &mut self,
        depth: usize,
        word: &Token,
        part: impl Fn(&mut Self, usize) -> Result<Node, FilterError>,
        join: impl Fn(Vec<Node>) -> Node,
    ) -> Result<Node, FilterError> {
        let first = part(self, depth)?;
        let mut nodes = vec![first];
        while self.take(word) {
            nodes.push(part(self, depth)?);
        }
        Ok(if nodes.len() == 1 { nodes.remove(0) } else { join(nodes) })
    }

    fn operand(&mut self, depth: usize) -> Result<Node, FilterError> {
        let position = self.position();
        if depth > FILTER_DEPTH_MAX {
            return error(position, format!("nested deeper than {FILTER_DEPTH_MAX}"));
        }
        match self.next("a field, NOT or (")? {
            Token::Not => Ok(Node::Not(Box::new(self.operand(depth + 1)?))),
            Token::Open => {
                let node = self.or(depth + 1)?;
                self.expect(&Token::Close)?;
                Ok(node)
            }
            Token::Name(name) => self.predicate(position, &name, depth),
            token => error(position, format!("expected a field, NOT or (, found {token}")),
        }
    }

    fn predicate(&mut self, position: usize, name: &str, depth: usize) -> Result<Node, FilterError> {
        let field = match Field::parse(name) {
            Some(field) => field,
            None if name == "distance" => self.distance(position)?,
            None => {
                let unknown_field = Some(name.to_owned());
                return Err(FilterError { position, message: Field::unknown(name), unknown_field });
            }
        };
        let at = self.position();
        match self.tokens.peek().map(|(_, token)| token.clone()) {
            Some(Token::Operator(operator)) => {
                self.tokens.next();
                let literal = self.literal(&field)?;
                let predicate = Predicate::comparison(operator, literal).or_else(|message| error(at, message))?;
                Ok(node(field, predicate))
            }
            Some(Token::In) => {
                self.tokens.next();
                let literals = self.list(&field, at)?;
                match node(field, Predicate::In(literals)) {
                    // Written, it has parentheses.
                    Node::Or(_) if depth == FILTER_DEPTH_MAX => {
                        error(position, format!("nested deeper than {FILTER_DEPTH_MAX}"))
                    }
                    node => Ok(node),
                }
            }
            Some(Token::Has) => {
                self.tokens.next();
                field.check_has_words().or_else(|message| error(at, message))?;
                let at = self.position();
                match self.next("a text")? {
                    Token::Text(text) => {
                        let predicate = Predicate::has_words(&field, text).or_else(|message| error(at, message))?;
                        Ok(node(field, predicate))
                    }
                    token => error(at, format!("expected a text in double quotes, found {token}")),
                }
            }
            _ if matches!(field.value_type(), ValueType::Flag | ValueType::Attribute) => {
                Ok(Node::Predicate(field, Predicate::Compare(Operator::Equal, Literal::Flag(true))))
            }
            _ => error(at, format!("expected a comparison, IN or HAS after {name}")),
        }
    }

    /// Parses the arguments of `distance(attributes.NAME, LATITUDE, LONGITUDE)`, which begins at a position.
    fn distance(&mut self, position: usize) -> Result<Field, FilterError> {
        self.expect(&Token::Open)?;
        let at = self.position();
        let attribute = match self.next("attributes.NAME")? {
            Token::Name(name) if attribute_name(&name).is_some() => name,
            token => return error(at, format!("expected attributes.NAME, found {token}")),
        };
        let mut degrees = [0.0; 2];
        for degree in &mut degrees {
            self.expect(&Token::Comma)?;
            let at = self.position();
            *degree = match self.next("a number")? {
                Token::Number(number) => number,
                token => return error(at, format!("expected degrees, found {token}")),
            };
        }
        self.expect(&Token::Close)?;
        let [latitude, longitude] = degrees;
        match Distance::new(attribute_name(&attribute).unwrap_or_default(), latitude, longitude) {
            Some(distance) => Ok(Field::Distance(distance)),
            None => error(position, "the latitude must be within -90 and 90, the longitude within -180 and 180"),
        }
    }

    fn list(&mut self, field: &Field, at: usize) -> Result<Vec<Literal>, FilterError> {
        field.check_in_list().or_else(|message| error(at, message))?;
        self.expect(&Token::Open)?;
        let mut literals = vec![self.literal(field)?];
        while self.take(&Token::Comma) {
            literals.push(self.literal(field)?);
        }
        self.expect(&Token::Close)?;
        Ok(literals)
    }

    fn literal(&mut self, field: &Field) -> Result<Literal, FilterError> {
        let position = self.position();
        let value = match self.next("a value")? {
            Token::Text(text) => FilterValue::Text(text),
            Token::Name(word) if word == "timestamp" && field.has_times() => {
                self.expect(&Token::Open)?;
                let position = self.position();
                let literal = match self.next("a time in double quotes")? {
                    Token::Text(text) => Literal::of(field, FilterValue::Time(text)),
                    token => Err(format!("expected a time in double quotes, found {token}")),
                };
                let literal = literal.or_else(|message| error(position, message))?;
                self.expect(&Token::Close)?;
                return Ok(literal);
            }
            Token::Number(number) if field.value_type() == ValueType::Distance => {
                let position = self.position();
                match self.next(DISTANCE)? {
                    Token::Name(unit) if unit == "m" => FilterValue::Number(number),
                    Token::Name(unit) if unit == "km" && (number * 1000.0).is_finite() => {
                        FilterValue::Number(number * 1000.0)
                    }
                    token => {
                        return error(position, format!("expected {DISTANCE}, found {token} behind the number"));
                    }
                }
            }
            Token::Number(number) => FilterValue::Number(number),
            Token::Name(word) if word == "true" || word == "false" => FilterValue::Flag(word == "true"),
            token => return error(position, wrong_type(field, &token)),
        };
        Literal::of(field, value).or_else(|message| error(position, message))
    }

    fn position(&mut self) -> usize {
        self.tokens.peek().map_or(self.end, |(position, _)| *position)
    }

    fn next(&mut self, expected: &str) -> Result<Token, FilterError> {
        match self.tokens.next() {
            Some((_, token)) => Ok(token),
            None => error(self.end, format!("expected {expected}, found the end")),
        }
    }

    fn take(&mut self, expected: &Token) -> bool {
        self.tokens.next_if(|(_, token)| token == expected).is_some()
    }

    fn expect(&mut self, expected: &Token) -> Result<(), FilterError> {
        let position = self.position();
        match self.tokens.next() {
            Some((_, token)) if token == *expected => Ok(()),
            Some((_, token)) => error(position, format!("expected {expected}, found {token}")),
            None => error(position, format!("expected {expected}, found the end")),
        }
    }
}
