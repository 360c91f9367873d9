//! User events.
use lodestone_core::{
    ids::{EventId, ItemId, UserId},
    units::{PriceMicros, Quantity, UnixMillis},
    viewer::ViewerContext,
};

/// A validated event. Its fields correspond to those of `lodestone.v1.Event`.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: EventId,
    pub kind: EventKind,
    pub user: UserId,
    /// Empty if unknown.
    pub session: String,
    pub context: ViewerContext,
    pub at: UnixMillis,
    pub lines: Vec<EventLine>,
    /// Empty except for SEARCH.
    pub query: String,
    /// Empty except for PURCHASE and REFUND.
    pub order: String,
    /// 1 to 5 for REVIEW, otherwise 0.
    pub stars: u8,
    pub coupon: String,
    pub categories: Vec<String>,
    pub currency: String,
    pub attribution: Attribution,
    /// The text of the completion that the user accepted by a SEARCH or CLICK; otherwise empty.
    pub completion: String,
}

impl Event {
    /// Returns an event whose other fields are empty.
    pub fn new(id: EventId, kind: EventKind, user: UserId, at: UnixMillis) -> Self {
        Self {
            id,
            kind,
            user,
            at,
            session: String::new(),
            context: ViewerContext::default(),
            lines: Vec::new(),
            query: String::new(),
            order: String::new(),
            stars: 0,
            coupon: String::new(),
            categories: Vec::new(),
            currency: String::new(),
            attribution: Attribution::None,
            completion: String::new(),
        }
    }
}

/// One item of an event.
#[derive(Debug, Clone, PartialEq)]
pub struct EventLine {
    pub item: ItemId,
    pub quantity: Quantity,
    pub price: Option<PriceMicros>,
    /// The rank in the list that the user saw, counted from 1; 0 if unknown.
    pub rank: u32,
}

/// The answer that led to the event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Attribution {
    #[default]
    None,
    /// An attribution token that this shop's server signed.
    Answer(String),
    /// A token that it did not sign. The event is kept, but training ignores the token.
    Foreign(String),
}

/// The type of an event. The log stores the numbers, which are those of `lodestone.v1.EventType`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventKind {
    Search = 1,
    Impression = 2,
    View = 3,
    Click = 4,
    AddToCart = 5,
    RemoveFromCart = 6,
    Favorite = 7,
    Unfavorite = 8,
    Review = 9,
    Purchase = 10,
    /// The user returned the items or cancelled the order.
    Refund = 11,
    CategoryView = 12,
    IncentiveShown = 13,
    IncentiveRedeemed = 14,
}

impl EventKind {
    pub const ALL: [EventKind; 14] = [
        Self::Search,
        Self::Impression,
        Self::View,
        Self::Click,
        Self::AddToCart,
        Self::RemoveFromCart,
        Self::Favorite,
        Self::Unfavorite,
        Self::Review,
        Self::Purchase,
        Self::Refund,
        Self::CategoryView,
        Self::IncentiveShown,
        Self::IncentiveRedeemed,
    ];

    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as i32 == number)
    }

    /// Returns the strength of the user's interest in the item, 0 to 1; 0 if the event is not positive.
    pub fn interest(self) -> f32 {
        match self {
            Self::Purchase => 1.0,
            Self::AddToCart | Self::Favorite => 0.7,
            _ if self.is_positive() => 0.4,
            _ => 0.0,
        }
    }

    /// Returns true if the event is evidence that the user wants the item.
    pub fn is_positive(self) -> bool {
        match self {
            Self::View | Self::Click | Self::AddToCart | Self::Favorite | Self::Review | Self::Purchase => true,
            Self::Search
            | Self::Impression
            | Self::RemoveFromCart
            | Self::Unfavorite
            | Self::Refund
            | Self::CategoryView
            | Self::IncentiveShown
            | Self::IncentiveRedeemed => false,
        }
    }

    /// Returns true if the event shows that the user was in the shop. A refund or an incentive may happen without a visit.
    pub fn is_visit(self) -> bool {
        !matches!(self, Self::Refund | Self::IncentiveShown | Self::IncentiveRedeemed)
    }

    /// Returns the name in files, such as `add_to_cart`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Search => "search",
            Self::Impression => "impression",
            Self::View => "view",
            Self::Click => "click",
            Self::AddToCart => "add_to_cart",
            Self::RemoveFromCart => "remove_from_cart",
            Self::Favorite => "favorite",
            Self::Unfavorite => "unfavorite",
            Self::Review => "review",
            Self::Purchase => "purchase",
            Self::Refund => "refund",
            Self::CategoryView => "category_view",
            Self::IncentiveShown => "incentive_shown",
            Self::IncentiveRedeemed => "incentive_redeemed",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns true if an event of this type must have items.
    pub fn needs_items(self) -> bool {
        !matches!(self, Self::Search | Self::CategoryView | Self::IncentiveShown | Self::IncentiveRedeemed)
    }
}
